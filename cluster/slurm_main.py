"""What job scripts of earlier checkouts start: such jobs may wait in a queue while the checkout is updated."""

import runpy

if __name__ == "__main__":
    runpy.run_module("cluster.slurm_job.batch_main", run_name="__main__")
