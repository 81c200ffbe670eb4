# nginx: a master and two workers of another user.
mkdir -p /srv/www /var/log/nginx
echo "\"token $(od -An -N8 -tx8 /dev/urandom)\"" >/srv/www/state
exec nginx -c /app/nginx.conf
