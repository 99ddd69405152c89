"""What happens when the network runs."""
