"""Masks close units during training; surgery then cuts them out exactly."""
