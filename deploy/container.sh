# How a step of a Slurm job runs: in the environment at $VENV or, with IMAGE, in that image. Sourced by the *.sbatch files.
#
#   IMAGE=/shared/mbeir-cot.sqsh sbatch deploy/slurm-build.sbatch CONFIG     pyxis and enroot; also REGISTRY#mbeir-cot:gpu
#   IMAGE=/shared/mbeir-cot.sif  sbatch deploy/slurm-build.sbatch CONFIG     Apptainer or Singularity
#
# MOUNTS: what the image is to see beside the folder of the submission, as /a:/a,/b:/b.
# shellcheck shell=bash disable=SC2034  # used where this is sourced

step=(srun)  # with the arguments that every step needs
inside=()    # what comes before a command, within a step
venv=${VENV:-$PWD/.venv}
# /tmp: Ray's processes meet in sockets there, each in a container of its own.
mounts=/tmp:/tmp,$PWD:$PWD,${MOUNTS:-/data:/data}
case ${IMAGE:-} in
  "") ;;
  *.sif) venv=${VENV:-/work/.venv} inside=(apptainer exec --nv --bind "$mounts" --pwd "$PWD" "$IMAGE") ;;
  *) venv=${VENV:-/work/.venv} step+=(--container-image="$IMAGE" --container-mounts="$mounts" --container-workdir="$PWD") ;;
esac

# Since Slurm 22.05 a step does not take the job's --cpus-per-task: where cores are bound, all of a node's processes would share one.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
