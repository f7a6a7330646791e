"""Define what the other packages build on: attention problems, block masks, the reference, selection rules."""
