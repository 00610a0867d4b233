"""Mixed load from a seeded schedule: what a long-running process does to layers and models.

cd tests && python -m endurance --minutes 60 --seed 1
"""
