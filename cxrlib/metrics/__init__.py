"""Labels and probabilities in, a report with intervals out."""
