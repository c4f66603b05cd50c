"""The verdict's own test: `make verify-self-test` verifies correct builds and faulty ones.

A correct build that fails is a false alarm, a faulty one that passes is a miss. The faults stand in `catalogue`; the
tests of verify take theirs from there, too. Results: docs/verdict.json.
"""
