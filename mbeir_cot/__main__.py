"""`python -m mbeir_cot`: the same as the command `mbeir-cot`, for launchers that start a module."""

from mbeir_cot.app import main

if __name__ == "__main__":
    main()
