// Reads and writes a block device with O_DIRECT, for tests.bench.disk.
//
//	gcc -O1 -static -o disk_bench disk_guest.c
//	disk_bench DEVICE MIB     each combination of sizes, orders, directions and processes at a time; MIB of data each,
//	                          but not more than 20 requests for each of MIB
//
// Two lines each: BEGIN, and RESULT size order direction outstanding requests seconds

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/fs.h>

struct shared {
	uint64_t position;
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void work(int fd, uint64_t blocks, size_t size, int random, int writes, struct shared *shared, uint64_t limit,
		 int ready, int go)
{
	char *buffer = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	unsigned int seed = getpid();
	uint64_t number;

	memset(buffer, seed, size);
	if (write(ready, "", 1) != 1 || read(go, buffer, 1) != 1)
		exit(1);
	while ((number = __sync_fetch_and_add(&shared->position, 1)) < limit) {
		uint64_t at = random ? (uint64_t)rand_r(&seed) : number;
		off_t offset = at % blocks * size;
		ssize_t done = writes ? pwrite(fd, buffer, size, offset) : pread(fd, buffer, size, offset);

		if (done != (ssize_t)size) {
			perror("I/O");
			exit(1);
		}
	}
	exit(0);
}

static void measure(int fd, uint64_t bytes, size_t size, int random, int writes, int processes, uint64_t limit)
{
	struct shared *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char bytes_read[8];
	int ready[2], go[2];
	double begin;

	if (pipe(ready) || pipe(go))
		exit(1);
	for (int i = 0; i < processes; i++)
		if (!fork())
			work(fd, bytes / size, size, random, writes, shared, limit, ready[1], go[0]);
	for (int i = 0; i < processes; i++)
		if (read(ready[0], bytes_read, 1) != 1)
			exit(1);
	printf("BEGIN\n");
	fflush(stdout);
	usleep(100000); // until the line is out
	begin = now();
	if (write(go[1], bytes_read, processes) != processes)
		exit(1);
	while (wait(NULL) > 0)
		;
	printf("RESULT %zu %s %s %d %llu %.4f\n", size, random ? "random" : "sequential", writes ? "write" : "read",
	       processes, (unsigned long long)limit, now() - begin);
	fflush(stdout);
	for (int i = 0; i < 2; i++)
		close(ready[i]), close(go[i]);
	munmap(shared, 4096);
}

int main(int argc, char **argv)
{
	static const size_t sizes[] = {4096, 65536, 1 << 20};
	int fd = argc == 3 ? open(argv[1], O_RDWR | O_DIRECT) : -1;
	uint64_t bytes, mib;

	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes)) {
		perror(argv[1]);
		return 1;
	}
	mib = strtoull(argv[2], NULL, 10);
	for (int s = 0; s < 3; s++)
		for (int writes = 0; writes < 2; writes++)
			for (int random = 0; random < 2; random++)
				for (int processes = 1; processes <= 8; processes += 7) {
					uint64_t limit = (mib << 20) / sizes[s];

					if (limit > 20 * mib)
						limit = 20 * mib;
					measure(fd, bytes, sizes[s], random, writes, processes, limit);
				}
	return 0;
}
