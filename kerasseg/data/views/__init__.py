"""Data sets made of other data sets: joined, cut down, repeated, kept in memory."""
