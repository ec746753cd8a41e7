"""What AREAD is made of besides layers: masks, candidates and their search."""
