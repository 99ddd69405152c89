"""Explain: a trained model goes in, a program comes out that runs instead of it, with the tests that it stood."""
