"""What every floor above speaks of: attention problems, block masks, the float64 reference, selection rules."""
