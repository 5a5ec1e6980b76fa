// Reads and writes a block device with O_DIRECT, for tests.bench.disk.
//
//	gcc -O1 -static -o disk_bench disk_guest.c
//	disk_bench DEVICE SECONDS     each combination of sizes, orders, directions and processes at a time
//
// A line each: RESULT size order direction outstanding MB/s requests/s

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
	uint64_t requests;
	volatile int stop;
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void work(int fd, uint64_t blocks, size_t size, int random, int writes, struct shared *shared, double end)
{
	char *buffer = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	unsigned int seed = getpid();

	memset(buffer, seed, size);
	while (now() < end) {
		uint64_t at = random ? (uint64_t)rand_r(&seed) : __sync_fetch_and_add(&shared->position, 1);
		off_t offset = at % blocks * size;
		ssize_t done = writes ? pwrite(fd, buffer, size, offset) : pread(fd, buffer, size, offset);

		if (done != (ssize_t)size) {
			perror("I/O");
			exit(1);
		}
		__sync_fetch_and_add(&shared->requests, 1);
	}
	exit(0);
}

int main(int argc, char **argv)
{
	static const size_t sizes[] = {4096, 65536, 1 << 20};
	double seconds = atof(argv[2]);
	struct shared *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int fd = open(argv[1], O_RDWR | O_DIRECT);
	uint64_t bytes;

	if (argc < 3 || fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes)) {
		perror(argv[1]);
		return 1;
	}
	for (int s = 0; s < 3; s++)
		for (int writes = 0; writes < 2; writes++)
			for (int random = 0; random < 2; random++)
				for (int processes = 1; processes <= 8; processes += 7) {
					double begin = now();

					shared->position = shared->requests = 0;
					for (int i = 0; i < processes; i++)
						if (!fork())
							work(fd, bytes / sizes[s], sizes[s], random, writes, shared, begin + seconds);
					while (wait(NULL) > 0)
						;
					double taken = now() - begin;

					printf("RESULT %zu %s %s %d %.2f %.1f\n", sizes[s], random ? "random" : "sequential",
					       writes ? "write" : "read", processes, shared->requests * sizes[s] / taken / 1e6,
					       shared->requests / taken);
					fflush(stdout);
				}
	return 0;
}
