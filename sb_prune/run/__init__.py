"""The phases of a run: prune, cut, fine-tune, export; resumable anywhere."""
