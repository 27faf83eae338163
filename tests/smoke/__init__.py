"""Once through everything that breaks a run, on real Ray and a real Slurm, in minutes: `make test-smoke`."""
