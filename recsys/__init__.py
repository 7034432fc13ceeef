"""Nouns that two or more pipeline steps share. Imports none of the other folders."""
