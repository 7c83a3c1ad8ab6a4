# Sets how the steps of a Slurm job run: in the environment at $VENV or, with IMAGE, in that image. Sourced by the *.sbatch files.
#
#   IMAGE=/shared/mbeir-cot.sqsh sbatch deploy/slurm-build.sbatch CONFIG     pyxis and enroot; also REGISTRY#mbeir-cot:gpu
#   IMAGE=/shared/mbeir-cot.sif  sbatch deploy/slurm-build.sbatch CONFIG     Apptainer or Singularity
#
# MOUNTS: folders to mount besides the submission's own, as /a:/a,/b:/b.
# shellcheck shell=bash disable=SC2034  # used where this is sourced

step=(srun)  # with the arguments that every step needs
inside=()    # prefix of a command within a step
venv=${VENV:-$PWD/.venv}
# /tmp is mounted for the sockets through which Ray's processes, each in its own container, talk to each other.
mounts=/tmp:/tmp,$PWD:$PWD,${MOUNTS:-/data:/data}
case ${IMAGE:-} in
  "") ;;
  *.sif) venv=${VENV:-/work/.venv} inside=(apptainer exec --nv --bind "$mounts" --pwd "$PWD" "$IMAGE") ;;
  *) venv=${VENV:-/work/.venv} step+=(--container-image="$IMAGE" --container-mounts="$mounts" --container-workdir="$PWD") ;;
esac

# Since Slurm 22.05 a step does not inherit the job's --cpus-per-task; with core binding, all processes of a node would share one core.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
