"""M-BEIR in, M-BEIR-CoT out. `build` is the driver; `docs/architecture.md` shows the order of the sub-packages."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent until a command opens a file or a caller its own
