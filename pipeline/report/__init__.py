"""Reports: one self-contained HTML file that tells what a build or a training run is worth."""
