"""Attention is read or rewritten while sampling."""
