"""XLA's options in tests: programs that run once or twice should compile in little time."""


def flags(devices: int | None = None) -> str:
    """The value of XLA_FLAGS for a process with so many CPU devices; None for the real number.

    LLVM's first level of optimisation compiles a train step in three quarters of the time of the
    usual level. Without optimisation it would compile in half, but run three times as long.
    """
    level = "--xla_backend_optimization_level=1"
    return f"--xla_force_host_platform_device_count={devices} {level}" if devices else level
