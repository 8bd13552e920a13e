"Two workers share two cores: one thread each, in the tests and in the kernels they start."
import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = os.environ.get("MPLBACKEND", "agg")
