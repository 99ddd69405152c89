"""The exercises, one file each; the number in front of a name is its place in the order."""
