"""Qwen3-TTS for vox_serve: a talker, a depth decoder over 16 codebooks, text beside the sound."""
