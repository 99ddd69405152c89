"""Foreign tensors to canonical ones, and exact rewrites."""
