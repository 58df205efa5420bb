"""Masks on disk: written window by window under a temporary name, renamed when whole."""
