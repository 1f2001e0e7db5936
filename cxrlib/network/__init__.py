"""The networks and how they are trained. Pure Keras 3."""
