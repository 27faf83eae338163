/* Stands in for pyxis: a SPANK plugin with three of its options, which makes the container by container_root.sh.
 * Its argument in plugstack.conf: the path of that script. As with enroot, /tmp is a container's own. */
#define _GNU_SOURCE
#include <sched.h>
#include <slurm/spank.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

SPANK_PLUGIN(pyxis, 1);

static char *values[3]; /* image, mounts, folder */

static int take(int which, const char *value, int remote)
{
	values[which] = strdup(value);
	return 0;
}

static struct spank_option options[] = {
	{"container-image", "IMAGE", "[pyxis] the image", 1, 0, take},
	{"container-mounts", "SRC:DST[:FLAGS]", "[pyxis] bind mounts inside the container", 1, 1, take},
	{"container-workdir", "PATH", "[pyxis] working directory inside the container", 1, 2, take},
	SPANK_OPTIONS_TABLE_END
};

int slurm_spank_init(spank_t spank, int argc, char **argv)
{
	for (struct spank_option *option = options; option->name; option++)
		if (spank_option_register(spank, option) != ESPANK_SUCCESS)
			return -1;
	return 0;
}

int slurm_spank_task_init_privileged(spank_t spank, int argc, char **argv)
{
	char root[4096];
	int status;
	pid_t child;

	if (!values[0])
		return 0;
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return -1;
	child = fork();
	if (child == 0) {
		execl("/bin/bash", "bash", argv[0], values[0], values[1] ? values[1] : "", (char *) NULL);
		_exit(127);
	}
	if (child < 0 || waitpid(child, &status, 0) != child || status) {
		slurm_error("pyxis: could not make the container of %s", values[0]);
		return -1;
	}
	snprintf(root, sizeof root, "%s/root", values[0]);
	if (chroot(root) || chdir(values[2] ? values[2] : "/")) {
		slurm_error("pyxis: could not enter %s", root);
		return -1;
	}
	return 0;
}
