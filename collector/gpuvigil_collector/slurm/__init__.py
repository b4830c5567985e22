"""What Slurm says of nodes and jobs, read and never changed; `actuators/slurm.py` alone changes anything."""
