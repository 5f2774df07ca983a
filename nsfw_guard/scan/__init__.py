"""Scanning what exists already: files, archives, tables and object stores, into rows that say what was found."""
