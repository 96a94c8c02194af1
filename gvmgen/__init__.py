"""GVMGen (arXiv 2501.09972): music for a video. Importing this package loads no torch."""
