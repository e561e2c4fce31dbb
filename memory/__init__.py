"""The pyramid memory bank: blocks, tiers, levels and retrieval. Knows nothing of pixels, models or text."""
