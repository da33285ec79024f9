"""XLA's options in tests: programs that run once or twice should compile in little time."""

from importlib.metadata import version


def flags(devices: int | None = None, default_fusions: bool = False) -> str:
    """The value of XLA_FLAGS for a process.

    Without LLVM's optimisations and without the code generator of fusions that JAX 0.10 uses by
    default, a train step compiles in a fifth of the time. Later versions have no other generator.

    Args:
        devices: simulated CPU devices; None for the real number.
        default_fusions: keeps that generator, for tests that compare results of different shardings
            to the bit: the other one rounds differently for arrays of other shapes.
    """
    options = ["--xla_backend_optimization_level=0"]
    if not default_fusions and version("jaxlib").startswith("0.10."):
        options.append("--xla_cpu_use_fusion_emitters=false")
    if devices:
        options.append(f"--xla_force_host_platform_device_count={devices}")
    return " ".join(options)
