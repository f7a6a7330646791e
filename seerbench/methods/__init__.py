"""Define what a method is (protocol.py), find methods by name (registry.py), and provide SeerAttention."""
