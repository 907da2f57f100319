"""Which plan is fastest: topology, options, estimate, proposals, partition, report; functions of numbers."""
