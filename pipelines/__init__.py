"""The processes around the jobs: the local stack, the workload, the demo, the command line."""
