// Serves HTTP on port 8000 and holds an io_uring, which CRIU cannot dump. With an argument it does
// so without the ring.
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char** argv) {
  (void)argv;
  struct io_uring_params parameters;
  memset(&parameters, 0, sizeof parameters);
  if (argc == 1) {
    int ring = (int)syscall(SYS_io_uring_setup, 8, &parameters);
    if (ring < 0) {
      perror("io_uring_setup");
      return 1;
    }
    size_t size = parameters.sq_off.array + parameters.sq_entries * sizeof(unsigned);
    if (mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring,
             IORING_OFF_SQ_RING) == MAP_FAILED) {
      perror("mmap");
      return 1;
    }
  }
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(8000)};
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(listener, (struct sockaddr*)&address, sizeof address) || listen(listener, 16)) {
    perror("listen");
    return 1;
  }
  for (;;) {
    char text[4096];
    int client = accept(listener, NULL, NULL);
    if (client < 0) continue;
    ssize_t n = read(client, text, sizeof text);
    const char* answer = "HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\n\"ok\"";
    if (n > 0) n = write(client, answer, strlen(answer));
    close(client);
  }
}
