"""The layout level of the optimizer: channels last where a provider prefers it, after nodes were placed."""

from gpurt.layout.transformer import LEVEL, NAME, channels_last, sentence

__all__ = ["LEVEL", "NAME", "channels_last", "sentence"]
