"""Retrievers: users → scores over the catalog → candidates."""
