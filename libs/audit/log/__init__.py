"""A second reading of the log's format, for whoever does not take the first one's word.

It is responsible for saying what a log's own bytes prove. It shares no code with what writes the log: from here on down
there are SHA-256, Ed25519 and certificates as libraries give them, and the format as its description has it. Integers
are big-endian and unsigned; reserved bytes are zero and anything else is damage.
"""
