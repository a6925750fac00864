"""The recipe of the demo voice: data, codec, language model, export, evaluation, in this order."""
