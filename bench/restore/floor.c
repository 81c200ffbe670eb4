// The machine's floor for a start: a static program, executed into a network namespace made ahead,
// copies a working set from the page cache into fresh memory and answers requests with 200.
//   floor NETNS PORT FILE MIB
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  size_t size = (size_t)atoi(argv[4]) << 20;
  int netns = open(argv[1], O_RDONLY), file = open(argv[3], O_RDONLY);
  if (netns < 0 || file < 0 || setns(netns, CLONE_NEWNET) != 0) return 3;
  const char* from = mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_POPULATE, file, 0);
  char* to =
      mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (from == MAP_FAILED || to == MAP_FAILED) return 4;
  memcpy(to, from, size);

  int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  struct sockaddr_in address = {.sin_family = AF_INET,
                                .sin_port = htons((unsigned short)atoi(argv[2]))};
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(listener, (struct sockaddr*)&address, sizeof address) != 0 || listen(listener, 8) != 0)
    return 5;
  static const char kAnswer[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";
  for (;;) {
    int client = accept(listener, NULL, NULL);
    if (client < 0) return 6;
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    char request[4096];
    while (read(client, request, sizeof request) > 0)
      if (write(client, kAnswer, sizeof kAnswer - 1) < 0) break;
    close(client);
  }
}
