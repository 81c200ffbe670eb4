// Serves HTTP on port 8000 and holds a landlock ruleset, which CRIU cannot dump. With an argument
// it does so without it.
#include <linux/landlock.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char** argv) {
  (void)argv;
  if (argc == 1) {
    struct landlock_ruleset_attr attributes = {.handled_access_fs = LANDLOCK_ACCESS_FS_EXECUTE};
    if (syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes, 0) < 0) {
      perror("landlock_create_ruleset");
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
