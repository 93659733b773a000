"""The policy: a decoder-only transformer."""
