"""What audio the package reads, wherever it comes from."""

SAMPLE_RATE = 16000  # Hz, of every corpus and model in the recipes
SUFFIXES = (".flac", ".mp3", ".ogg", ".opus", ".wav")
