"""Any source of an image -> pixels -> what the network sees."""
