"""What a method is (protocol.py), how it is found (registry.py), and SeerAttention with its gate."""
