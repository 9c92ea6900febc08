"""Persistent kernels: the launches of a plan as one, whose work-groups go from one kernel's work to the next.

Where every launch puts a CPU's threads to sleep and wakes them again, as PoCL's do, small kernels wait for that longer
than they compute. A persistent kernel (Gupta, Stuart and Owens, "A Study of Persistent Threads Style GPU Programming
for GPGPU Workloads", 2012) is launched once with a group for each core. It walks a table of kernels; the groups of each
kernel are dealt out over the cores, and the next kernel begins when the last of them is done.
"""

from gpurt.device.persistent.part import Part
from gpurt.device.persistent.programs import Programs

__all__ = ["Part", "Programs"]
