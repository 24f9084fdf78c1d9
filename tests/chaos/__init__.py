"""Chaos: parts die, connections lie, history vanishes; afterwards the record is compared with the truth, id by id.

Every random choice comes from a seed, which is part of the test's name; ``IPE_CHAOS_SEEDS=7,8,9`` tries others.
"""
