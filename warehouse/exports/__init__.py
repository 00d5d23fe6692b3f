"""The history for others: files that programs open which know nothing of Sagascope."""
