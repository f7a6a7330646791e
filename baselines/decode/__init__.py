"""Baselines for decoding, one file per method: dense, streaming, quest, oracle. Each begins with its card.

They are methods of `seerbench.methods.decode_protocol`, like SeerDecode. Those for prefill are in the folder above.
"""
