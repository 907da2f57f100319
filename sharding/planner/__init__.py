"""Which plan is fastest: topology → options → estimate → propose → partition → report, functions of numbers."""
