"""One lifecycle: prune, cut, fine-tune, export; resumable anywhere."""
